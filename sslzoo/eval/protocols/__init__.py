"""Building blocks of the papers' evaluation protocols: functions of features, scores and labels."""
