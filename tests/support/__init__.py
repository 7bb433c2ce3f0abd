"""What tests share: fakes, tiny real things, sockets and processes."""
