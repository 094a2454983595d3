"""Evaluation: functions of features and labels."""
