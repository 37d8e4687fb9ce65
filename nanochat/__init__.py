"""NanoChat Appliance: train your own ChatGPT from nothing on the machine you have, then chat with it."""
