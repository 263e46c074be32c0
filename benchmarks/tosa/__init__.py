"""An artifact lowered whole to TOSA: agreement layer by layer, perplexity on Arm's reference model, Vela's estimates."""
