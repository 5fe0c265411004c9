"""Where bytes come from: local files, web servers, the hub. A source never interprets what it delivers."""
