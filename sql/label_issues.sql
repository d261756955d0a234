-- Purpose: the images whose given label is probably wrong. $by = 'noise-rate': of each pair of classes the confident joint
--          estimates how many images are given the one and are the other; as many are taken, those first for which the
--          other class's probability exceeds the given one's by most. $by = 'joint': the images that confidently are another
--          class. Either way the given label is not the most probable class, and no person has decided about the image.
-- Source:  Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021: prune by
--          noise rate, and the off-diagonals of the confident joint.
-- Inputs:  confident_classes, joint (confident_joint), decisions, stored_images, stored_classes.
-- Grain:   one row per suspect, ordered by $order: 'self-confidence', lowest first, or 'margin', largest first.
-- Parameters: $by, $order.
with
other as (select * from confident_classes where label <> given),
pairs as (
    select image_id, given, class, probability - self_confidence as margin
    from (
        select
            image_id, given, self_confidence,
            unnest(top_classes)::INT as class, unnest(top_probs)::DOUBLE as probability
        from other
    )
    where probability > self_confidence
),
placed as (
    select
        p.image_id, j.estimated,
        row_number() over (partition by p.given, p.class order by p.margin desc, p.image_id) as place
    from pairs as p
    join joint as j on j.given = p.given and j.class = p.class
),
suspects as (
    select *, top_probs[1]::DOUBLE - self_confidence as margin
    from other
    where case $by
        when 'joint' then confident is not null and confident <> given
        else image_id in (select image_id from placed where place <= estimated)
    end
)
select
    s.image_id, i.uri, s.given, g.class_name as given_class, s.label as suggested, n.class_name as suggested_class,
    s.self_confidence::FLOAT as self_confidence, s.margin::FLOAT as margin,
    coalesce(s.confident <> s.given, false) as confident
from suspects as s
join stored_images as i on i.image_id = s.image_id
join stored_classes as g on g.label = s.given
join stored_classes as n on n.label = s.label
where s.image_id not in (select image_id from decisions)
order by case $order when 'margin' then -s.margin else s.self_confidence end, s.margin desc, s.image_id;
