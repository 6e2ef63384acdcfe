"""Where the curves and pictures of a run go besides its folder, one thin file per service."""
