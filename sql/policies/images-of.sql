-- Purpose: the images of an earlier manifest once more, each for the class and as often as there, with the soft labels of
--          this generation: the teachers after the first label anew what the first one selected.
-- Source:  Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020, whose released code
--          selects once, with the first teacher.
-- Inputs:  candidates, earlier (rows of the manifest $manifest: image_id, label, copies, weight).
-- Grain:   one row per image. Images that were copied once more than others of their class come first, so that with the
--          earlier manifest's quota, fill and cap each has as many copies as there. The class is the one that the image
--          was selected for, whatever this teacher says, unless a reviewer gave another one; so hard targets are the
--          earlier ones, and only soft ones are new. --min-confidence 0 keeps images that this teacher is less sure of.
-- Parameter: $manifest = ''    name of the earlier manifest
select
    c.image_id, case when c.source = 'review' then c.label else e.label end as label, c.confidence, e.copies as score,
    e.weight
from candidates as c
join earlier as e using (image_id);
