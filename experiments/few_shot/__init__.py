"""Few-shot class-incremental learning: F2M (Shi et al. 2021) against fine-tuning, a frozen base and joint training."""
