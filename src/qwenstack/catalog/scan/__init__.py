"""Every model reference in a tree of files, as a report and as SARIF."""
