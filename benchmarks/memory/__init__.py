"""How much memory a build of a model of one billion parameters takes."""
