"""Serving: explorations for many callers at once, over HTTP, over MCP and on a page."""
