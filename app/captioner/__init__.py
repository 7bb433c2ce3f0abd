"""The workshop: images -> features -> beams -> captions, synchronous and pure torch."""
