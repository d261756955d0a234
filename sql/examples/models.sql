-- Purpose: the models, their parents and the last figures of their training.
-- Inputs:  models.
-- Grain:   one row per model, the newest first.
select model, generation, parents, manifest, metrics, created_at
from models
order by created_at desc, model;
