"""Requests in, answers out: HTTP from the connection to the JSON."""
