-- Purpose: how far two generations disagree on a split, in one row.
-- Inputs:  stored_drift.
-- Grain:   one row. Means and flips are of the images that both have labeled.
-- Parameters: $generation, $split.
select
    coalesce(sum(images) filter (both_have), 0)::BIGINT as images,
    coalesce(sum(images) filter (label_before <> label_after), 0)::BIGINT as flipped,
    coalesce(sum(images) filter (label_after is null), 0)::BIGINT as only_before,
    coalesce(sum(images) filter (label_before is null), 0)::BIGINT as only_after,
    sum((images * confidence_before * 1e6)::BIGINT) filter (both_have)::DOUBLE / 1e6 / sum(images) filter (both_have)
        as confidence_before,
    sum((images * confidence_after * 1e6)::BIGINT) filter (both_have)::DOUBLE / 1e6 / sum(images) filter (both_have)
        as confidence_after
from (
    select *, label_before is not null and label_after is not null as both_have
    from stored_drift
    where generation = $generation and split = $split
);
