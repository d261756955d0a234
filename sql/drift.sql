-- Purpose: two generations compared in numbers, for the table `drift`.
-- Inputs:  pairs.
-- Grain:   one row per split, trusted class, class before and class after, ordered by them.
-- Parameters: $generation, $previous, $basis.
select
    $generation::SMALLINT as generation, $previous::SMALLINT as previous, split, truth, label_before, label_after,
    count(*) as images,
    -- in whole billionths: the last digits of a sum of floats depend on the order of its parts
    sum((confidence_before::DOUBLE * 1e9)::BIGINT)::DOUBLE / 1e9 / count(*) as confidence_before,
    sum((confidence_after::DOUBLE * 1e9)::BIGINT)::DOUBLE / 1e9 / count(*) as confidence_after,
    $basis::VARCHAR as basis
from pairs
group by split, truth, label_before, label_after
order by split, truth nulls last, label_before nulls last, label_after nulls last;
