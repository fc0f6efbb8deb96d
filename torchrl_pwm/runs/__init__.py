"""The application: configurations, run folders, data preparation, training runs, evaluation and reports."""
