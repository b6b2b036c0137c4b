"""What the experiments share: data, models, claims, results and plots."""
