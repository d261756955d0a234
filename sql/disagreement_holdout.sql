-- Purpose: what two generations made of the holdout: right before, right now, what the later one mended and broke.
-- Inputs:  stored_drift.
-- Grain:   one row; of the images that both have labeled.
-- Parameters: $generation.
select
    coalesce(sum(images), 0)::BIGINT as images,
    coalesce(sum(images) filter (label_before = truth), 0)::BIGINT as right_before,
    coalesce(sum(images) filter (label_after = truth), 0)::BIGINT as right_after,
    coalesce(sum(images) filter (label_before <> truth and label_after = truth), 0)::BIGINT as mended,
    coalesce(sum(images) filter (label_before = truth and label_after <> truth), 0)::BIGINT as broken
from stored_drift
where generation = $generation and truth is not null and label_before is not null and label_after is not null;
