-- Purpose: the features of images that `curator label --embeddings` stored.
-- Inputs:  stored_embeddings (the table's files).
-- Grain:   one row per image and model.
select image_id, model, weights_hash, vector
from stored_embeddings;
