-- Purpose: a threshold for each class: classes that the teacher is seldom sure of get a lower one,
--          threshold_c = tau * b / (2 - b), b = confident predictions of the class / those of the class with most.
-- Source:  Zhang et al., "FlexMatch: boosting semi-supervised learning with curriculum pseudo labeling", NeurIPS 2021,
--          equations 5 to 7 and 12 (convex mapping); without its warm-up, which has no meaning for a trained teacher.
-- Inputs:  candidates, allowed.
-- Grain:   one row per image; the quota keeps the first of each class.
-- Parameter: $threshold = 0.95 in 0 .. 1    tau; a prediction above it is confident
with
learned as (
    select label, count(*) filter (confidence > $threshold::FLOAT) as confident from allowed group by label
),
thresholds as (
    select
        label,
        -- if no class has a confident prediction, none lags behind: tau for all
        $threshold * coalesce(b / (2 - b), 1) as threshold
    from (select label, confident / nullif(max(confident) over (), 0) as b from learned)
)
select c.image_id, c.label, c.confidence, c.confidence as score
from candidates as c
left join thresholds as t on t.label = c.label
-- a class that only reviews gave an image has no predictions to judge it by
where c.confidence > coalesce(t.threshold, 0)::FLOAT;
