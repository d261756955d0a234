-- Purpose: every candidate, but the less sure the teacher is, the less a row weighs in the loss:
--          exp(-min(p - mu, 0)^2 / (2 sigma^2)), mu and sigma being mean and deviation of the confidences of the pool.
-- Source:  Chen et al., "SoftMatch: addressing the quantity-quality trade-off in semi-supervised learning", ICLR 2023.
--          There mu and sigma are running means over training; here the teacher is fixed, and so are they.
-- Inputs:  candidates, allowed.
-- Grain:   one row per image; the quota keeps the first of each class.
with spread as (select avg(confidence) as mu, var_pop(confidence) as variance from allowed)
select
    image_id, label, confidence, confidence as score,
    -- where all confidences are equal none is below the mean
    case when confidence >= mu then 1 else exp(-((confidence - mu) ** 2) / (2 * variance)) end as weight
from candidates, spread;
