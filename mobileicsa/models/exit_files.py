"""Names of the files of an early-exit model's folder, and its model_type: needs nothing heavy."""

CONFIG, WEIGHTS, EXITS = "config.json", "model.safetensors", "exits.json"
MODEL_TYPE = "mobileicsa_early_exit_vit"
