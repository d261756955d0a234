-- Purpose: how many images are given one class and confidently are another, the confident joint; and what that says of all
--          images: each row scaled to the images that are given the class, rounded so that the rows keep their sums.
-- Source:  Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021. As in
--          their package cleanlab, each class counts at least one image that is what it is given as.
-- Inputs:  confident_classes, thresholds (class_thresholds).
-- Grain:   one row per pair of classes that has an image, and each class with itself; by given, class.
with
counted as (
    select given, confident as class, count(*) as images
    from confident_classes
    where confident is not null
    group by given, confident
),
complete as (
    select given, class, images from counted where given <> class
    union all
    select t.label, t.label, greatest(coalesce(c.images, 0), 1)
    from thresholds as t
    left join counted as c on c.given = t.label and c.class = t.label
),
scaled as (
    select c.*, t.images as given_images, c.images * t.images / sum(c.images) over (partition by c.given) as calibrated
    from complete as c
    join thresholds as t on t.label = c.given
),
placed as (
    select
        *,
        row_number() over (partition by given order by calibrated - floor(calibrated) desc, class) as place,
        given_images - sum(floor(calibrated)) over (partition by given) as left_over
    from scaled
)
select given, class, images, floor(calibrated)::BIGINT + (place <= left_over)::BIGINT as estimated
from placed
order by given, class;
