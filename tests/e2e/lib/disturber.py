"""Somebody who gives the daemon orders at random while a test runs."""

import random
import threading

SETTINGS = {"pool.codec": ("lz4", "zstd:1", "raw"), "pool.cold_codec": ("none", "zstd:3"),
            "pool.waste_max": ("1", "3", "30"), "fault.readahead_max": ("1", "8", "64"),
            "evict.quarantine_s": ("0", "0", "1"), "fault.spin_us": ("0", "20")}


class Disturber(threading.Thread):
    """Random orders to the daemon until stop()."""

    def __init__(self, test, name, seed):
        super().__init__(daemon=True)
        self.test = test
        self.client_name = name
        self.random = random.Random(seed)
        self.pages = 0
        self.orders = 0
        self.stopping = threading.Event()

    def order(self):
        pick = self.random.randrange(100)
        if pick < 45:
            return ("reclaim", "--client", self.client_name, "--everything")
        if pick < 65:
            return ("reclaim", "--client", self.client_name, "--bytes",
                    f"{self.random.randrange(1, 16)}M")
        if pick < 75:
            return ("restore", "--client", self.client_name, "--hold", "0")
        if pick < 90:
            return ("limit", "--client", self.client_name,
                    self.random.choice(("4M", "12M", "24M", "none")))
        key = self.random.choice(sorted(SETTINGS))
        return ("set", key, self.random.choice(SETTINGS[key]))

    def run(self):
        while not self.stopping.wait(self.random.random() * 0.05):
            order = self.order()
            result = self.test.cli(*order, seconds=120)
            self.orders += 1
            if order[0] == "reclaim" and result.stdout.strip().isdigit():
                self.pages += int(result.stdout)

    def stop(self):
        self.stopping.set()
        self.join()
