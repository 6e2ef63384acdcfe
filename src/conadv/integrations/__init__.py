"""conadv inside other people's trainers: one thin file each, imported by name.

Each file needs the trainer that it is for, an extra of the same name, and nothing else beside torch
and numpy. `docs/trainers/` shows how each is used, and trainers that need no code of ours.
"""
