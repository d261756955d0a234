-- Purpose: every candidate, but the less sure the teacher is, the less a row weighs in the loss:
--          exp(-min(p - mu, 0)^2 / (2 sigma^2)), mu and sigma being mean and deviation of the confidences of the pool.
-- Source:  Chen et al., "SoftMatch: addressing the quantity-quality trade-off in semi-supervised learning", ICLR 2023.
--          There mu and sigma are running means over training; here the teacher is fixed, and so are they.
-- Inputs:  candidates, allowed.
-- Grain:   one row per image; the quota keeps the first of each class.
with
-- Sums of whole numbers: those of fractions depend in their last digits on how threads share the rows.
centre as (select sum((confidence * 2.0 ** 40)::BIGINT) / count(*) / 2.0 ** 40 as mu from allowed),
spread as (
    select mu, sum(((confidence - mu) * (confidence - mu) * 2.0 ** 90)::HUGEINT) / count(*) / 2.0 ** 90 as variance
    from allowed, centre
    group by mu
)
select
    image_id, label, confidence, confidence as score,
    -- Where all confidences are equal none is below the mean. The lowest weight is the smallest FLOAT of full precision,
    -- since 0 would say that the row is not there.
    case
        when confidence >= mu then 1
        else greatest(exp(-(confidence - mu) * (confidence - mu) / (2 * variance)), 2.0 ** -126)
    end as weight
from candidates, spread;
