-- Purpose: a threshold for each class from which on the teacher is right often enough: the lowest confidence t at which,
--          of the holdout images that the teacher puts into the class with a confidence of t or more, the share that is
--          right has a lower confidence bound of at least $precision.
-- Source:  Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927, for the bound;
--          one-sided at $z standard deviations. The lowest of many thresholds is a favourable pick, so the bound is a
--          little optimistic; and the pool may be harder than the holdout.
-- Inputs:  candidates, holdout (the teacher's labels of the holdout: label, confidence, is_right).
-- Grain:   one row per image; the quota keeps the first of each class. A class that never reaches the target has none.
--          One with so few holdout images that not even all of them right would reach it takes the threshold of all
--          classes together.
-- Parameter: $precision = 0.9 in 0 .. 1    the target
-- Parameter: $z = 1.645 in 0 .. 10    standard deviations of the bound; 1.645 is 95 %, one-sided
with
counted as (
    select
        label, confidence,
        -- range, so that equal confidences count together
        count(*) over of_class as n, count(case when is_right then 1 end) over of_class as k,
        count(*) over of_all as n_all, count(case when is_right then 1 end) over of_all as k_all
    from holdout
    window
        of_class as (partition by label order by confidence desc range between unbounded preceding and current row),
        of_all as (order by confidence desc range between unbounded preceding and current row)
),
bounded as (
    select
        *,
        (k + $z * $z / 2 - $z * sqrt(k * (n - k) / n + $z * $z / 4)) / (n + $z * $z) as bound,
        (k_all + $z * $z / 2 - $z * sqrt(k_all * (n_all - k_all) / n_all + $z * $z / 4)) / (n_all + $z * $z) as bound_all
    from counted
),
overall as (select min(confidence) filter (bound_all >= $precision) as threshold from bounded),
own as (select label, count(*) as images, min(confidence) filter (bound >= $precision) as threshold from bounded group by label)
select c.image_id, c.label, c.confidence, c.confidence as score
from candidates as c
left join own on own.label = c.label
cross join overall
where c.confidence >= case
    -- n right out of n has the bound n / (n + z^2)
    when own.images is null or own.images / (own.images + $z * $z) < $precision then overall.threshold
    else own.threshold
end;
