-- Purpose: the figures of every training run.
-- Inputs:  stored_metrics (the table's files).
-- Grain:   one row per run, step and name.
select model, step, epoch, name, value, "at"
from stored_metrics;
