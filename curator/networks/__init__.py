"""Networks: recipes, weights, engines, probabilities of stored images."""
