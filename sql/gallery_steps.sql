-- Purpose: how many images lie in which range of a measure, to find a page far down without sorting what comes before.
-- Inputs:  found (gallery.sql).
-- Grain:   one row per range that holds an image, in their order.
-- Parameters: $measure (confidence, margin or entropy).
--
-- Many teachers are nearly always sure, so the ranges become finer towards 1 and towards 0: they have the same width in
-- ln(x / (1 - x)), and above 1, where only entropies are, in ln(x).
with measured as (
    select case $measure when 'confidence' then confidence when 'margin' then margin else entropy end as value
    from found
)
select min(value) as low, max(value) as high, count(*) as images
from measured
group by floor(64 * (ln(value::DOUBLE + 1e-7) - ln(greatest(1 - value::DOUBLE, 0) + 1e-7)))
order by low;
