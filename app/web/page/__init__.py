"""What people see in a browser: the page at ``/`` and the API's documentation at ``/docs``.

Static files that a browser runs as they are; nothing of them comes from elsewhere.
"""
