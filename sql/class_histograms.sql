-- Purpose: how confident a generation is of the pool images of some classes, in 50 steps of 0.02.
-- Inputs:  stored_histograms, or what sql/histograms.sql gives.
-- Grain:   one row per class and step that holds an image; step counts from 0.
-- Parameters: $generation, $labels (class indexes).
select label::INT as label, step::INT as step, images
from stored_histograms
where generation = $generation and split = 'unlabeled' and list_contains($labels::INT[], label::INT)
order by label, step;
