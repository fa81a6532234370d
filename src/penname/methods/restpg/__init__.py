"""REST-PG (arXiv 2501.04167): reason over the profile, then self-train on one's own best outputs."""
