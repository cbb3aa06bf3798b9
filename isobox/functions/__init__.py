"""Functions that run in sandboxes.

app = isobox.App("demo")

@app.function(cpu=1, memory=512)
def square(x):
    return x * x

with app.run():
    print(square.remote(3), list(square.map(range(10))))
"""
