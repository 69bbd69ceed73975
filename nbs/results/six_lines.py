from bitgen.bitgen import BitGen
from bitgen.scenes import SceneImage
model, image = BitGen.from_pretrained('outputs/scenes/checkpoint-final'), SceneImage(42, 2, 'val')()
print(model.caption(image), model.match(image, [f'a small red square {at} a small black cross' for at in ('right of', 'left of')]))
model.remember(image, 'the card on the desk')
print(model.recall(image))
