"""Who works at what, where several machines share a folder."""
