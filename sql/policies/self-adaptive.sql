-- Purpose: thresholds that follow the teacher: the mean confidence of the pool, scaled for each class by its mean
--          predicted probability over that of the class with the highest.
-- Source:  Wang et al., "FreeMatch: self-adaptive thresholding for semi-supervised learning", ICLR 2023, equations 5 to
--          8; there both means run over training, here the teacher is fixed. Mass outside the kept classes is not
--          counted, since it has no class.
-- Inputs:  candidates, allowed.
-- Grain:   one row per image; the quota keeps the first of each class.
with
-- Sums of whole numbers: those of fractions depend in their last digits on how threads share the rows.
overall as (select sum((confidence * 2.0 ** 40)::BIGINT) / count(*) / 2.0 ** 40 as tau from allowed),
mass as (
    select label, sum((p * 2.0 ** 40)::BIGINT) as mass
    from (select unnest(top_classes) as label, unnest(top_probs) as p from allowed)
    group by label
),
thresholds as (select label, tau * (mass / max(mass) over ()) as threshold from mass, overall)
select c.image_id, c.label, c.confidence, c.confidence as score
from candidates as c
left join thresholds as t on t.label = c.label
where c.confidence > coalesce(t.threshold, 0);
