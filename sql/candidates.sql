-- Purpose: the pool images that may enter a manifest: above the confidence threshold (compared in float32), not
--          rejected by a person, not showing a holdout image. The class is the teacher's top-1 class, or the one a
--          reviewer gave. With --calibrated `l.calibrated` takes the place of the marked confidence; with --accepted the
--          marked "false" lets in, at any confidence, what a reviewer gave this class, or accepted in it.
-- Inputs:  allowed (the pool's soft labels after --where), decisions, accepted, leaks.
-- Grain:   one row per image.
-- Parameters: $min_confidence.
select
    l.image_id,
    case when d.decision = 'relabel' then d.new_label else l.label end::INT as label,
    l.confidence, l.margin, l.entropy, l.top_classes, l.top_probs, l.tail,
    case when d.decision = 'relabel' then 'review' else 'pseudo' end as source
from allowed as l
left join decisions as d on d.image_id = l.image_id
left join accepted as a on a.image_id = l.image_id
where (/* confidence */ l.confidence > $min_confidence::FLOAT or /* accepted */ false)
  and (d.decision is null or d.decision <> 'reject')
  and l.image_id not in (select image_id from leaks);
