-- Purpose: classes that are short of images of their own are filled with images that rank them second, then with those
--          that rank them third, as long as the class where an image ranks first has no place for it. An image has one
--          class; a class that a reviewer gave or accepted is left alone.
-- Source:  Yalniz et al., "Billion-scale semi-supervised learning for image classification", arXiv 1905.00546, section
--          3.2 (P most probable classes of an image); there an image may stand in several classes.
-- Inputs:  candidates, classes, accepted.
-- Grain:   one row per image; the quota keeps the first of each class. Images of the first rank come before those of the
--          second, which come before those of the third: the score of the ranks 2 and 3 is the probability that the
--          teacher gives the class, times 2^-30 and 2^-60 (powers of two, so that no digit is lost).
-- Parameters: $per_class.
-- Parameter: $floor = 0.1 in 0 .. 1    lowest probability of a class that ranks second or third
with
first as (
    select
        *, row_number() over (partition by label order by confidence desc, image_id) as rank
    -- not the whole lists, which the windows would carry along
    from (
        select
            image_id, label, confidence,
            top_classes[2] as second_class, top_probs[2] as second_p,
            top_classes[3] as third_class, top_probs[3] as third_p
        from candidates
    )
),
room as (
    select c.label, $per_class - coalesce(f.images, 0) as room
    from classes as c
    left join (select label, count(*) as images from first where rank <= $per_class group by label) as f using (label)
),
spare as (
    select f.*
    from first as f
    left join accepted as a on a.image_id = f.image_id and a.label = f.label
    where f.rank > $per_class and a.image_id is null
),
second as (
    select s.image_id, s.confidence, s.label, s.p
    from (
        select
            image_id, confidence, second_class as label, second_p as p,
            row_number() over (partition by second_class order by second_p desc, image_id) as rank
        from spare
        where second_p >= $floor::FLOAT
    ) as s
    join room as r on r.label = s.label and s.rank <= r.room
),
room_after as (
    select r.label, r.room - coalesce(s.images, 0) as room
    from room as r
    left join (select label, count(*) as images from second group by label) as s using (label)
),
third as (
    select s.image_id, s.confidence, s.label, s.p
    from (
        select
            image_id, confidence, third_class as label, third_p as p,
            row_number() over (partition by third_class order by third_p desc, image_id) as rank
        from spare
        where third_p >= $floor::FLOAT and image_id not in (select image_id from second)
    ) as s
    join room_after as r on r.label = s.label and s.rank <= r.room
)
select image_id, label, confidence, confidence as score from first where rank <= $per_class
union all
select image_id, label, confidence, p * 2.0 ** -30 from second
union all
select image_id, label, confidence, p * 2.0 ** -60 from third;
