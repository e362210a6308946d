"""Tables, leaderboards, figures and pages from rows and records."""
