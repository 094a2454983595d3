"""Report: one run, or several side by side, as one HTML file that loads nothing from elsewhere."""
