"""An artifact lowered whole to TOSA: agreement by layer, perplexity on Arm's reference model, Vela's estimates."""
