"""Serving: explorations for many callers at once, over HTTP and MCP, and on a page."""
