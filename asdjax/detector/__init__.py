"""A detector in one file: fit to healthy recordings, score new ones, raise alarms."""
