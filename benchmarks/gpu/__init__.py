"""All that needs a GPU, in pieces that go on where the last call stopped."""
