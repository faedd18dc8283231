"""Runs the scenarios' notebooks and turns them into pages, results.json and junit.xml: reports/<run>/."""
