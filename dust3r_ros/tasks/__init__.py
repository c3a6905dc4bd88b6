"""What is done with two views, one view, or a finished map: matches, relative pose, depth, intrinsics, localisation."""
