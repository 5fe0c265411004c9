"""What pytest leaves alone in this folder."""

collect_ignore_glob = ["*_files/make*.py"]
"""They need the libraries whose files they write; the tests need only the files."""
