-- Purpose: the soft labels that the generation's teacher gave to the unlabeled pool.
-- Inputs:  stored_labels.
-- Grain:   one row per image.
-- Parameters: $generation.
select * from stored_labels
where generation = $generation and split = 'unlabeled';
