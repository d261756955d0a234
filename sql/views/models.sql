-- Purpose: the models, trained here or named by an import.
-- Inputs:  stored_models (the table's files).
-- Grain:   one row per model.
select model, generation::INT as generation, recipe, weights, weights_hash, parents, manifest, metrics, created_at
from stored_models;
