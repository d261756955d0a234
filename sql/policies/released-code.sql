-- Purpose: the selection of the released code, to compare with: the confidences of a class are counted in bins of 0.01,
--          the threshold is the edge of the bin at which the count from above reaches the quota, and of the images above
--          it each is kept with the probability quota / count.
-- Source:  The code that was released with Xie et al., "Self-training with Noisy Student improves ImageNet
--          classification", CVPR 2020. It draws without a seed and gives the quota in expectation; here the draw is a
--          hash of image and seed, what is drawn beyond the quota is cut, and what is missing is filled with copies.
--          Confidences are compared with the edges in double precision, as there.
-- Inputs:  candidates.
-- Grain:   one row per image; the quota keeps the first of each class, in the order of the draw.
-- Parameters: $per_class, $seed.
with
binned as (select label, floor(confidence::DOUBLE * 100)::INT as bin, count(*) as images from candidates group by all),
running as (
    select label, bin, sum(images) over (partition by label order by bin desc)::BIGINT as images from binned
),
edges as (
    -- the first bin at which the quota is reached; a class that is short takes everything
    select
        label,
        coalesce(max(bin) filter (images >= $per_class), min(bin)) as bin,
        coalesce(min(images) filter (images >= $per_class), max(images)) as images
    from running
    group by label
)
select image_id, label, confidence, 1 - draw as score
from (
    select
        c.image_id, c.label, c.confidence, e.images,
        -- 53 bits, as many as a DOUBLE holds
        (md5_number_lower(c.image_id || '/' || $seed) // 2048) / 2.0 ** 53 as draw
    from candidates as c
    join edges as e on e.label = c.label and floor(c.confidence::DOUBLE * 100)::INT >= e.bin
)
where draw < $per_class / images;
