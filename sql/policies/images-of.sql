-- Purpose: the images of an earlier manifest once more, each for the class and as often as there, with the soft labels of
--          this generation: the teachers after the first label anew what the first one selected.
-- Source:  Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020, whose released code
--          selects once, with the first teacher.
-- Inputs:  candidates, accepted, earlier (rows of the manifest $manifest: image_id, label, source, copies, weight).
-- Grain:   one row per image. Images that were copied once more than others of their class come first, so that with the
--          earlier manifest's quota, fill and cap each has as many copies as there. The class is the one that a person
--          gave the image or accepted it in; else the one that it was selected for, whatever this teacher says, unless a
--          person had given that and took it back: then it is this teacher's. So hard targets are the earlier ones, and
--          only soft ones are new. --min-confidence 0 keeps images that this teacher is less sure of.
-- Parameter: $manifest = ''    name of the earlier manifest
select
    c.image_id, coalesce(a.label, case when e.source = 'review' then c.label else e.label end) as label, c.confidence,
    e.copies as score, e.weight
from candidates as c
join earlier as e using (image_id)
left join accepted as a using (image_id);
